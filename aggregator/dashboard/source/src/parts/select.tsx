// A labelled choice, and a labelled search.
import { Icon } from "./icon";

interface ChoiceProps {
  label: string;
  value: string;
  options: { value: string; text: string }[];
  plain?: boolean; // always has a value: nothing stands out when it has
  onChange: (value: string) => void;
}

export function Choice({ label, value, options, plain = false, onChange }: ChoiceProps) {
  return (
    <label class={value && !plain ? "choice set" : "choice"}>
      <span>{label}</span>
      <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map((option) => (
          <option key={option.value} value={option.value}>
            {option.text}
          </option>
        ))}
      </select>
    </label>
  );
}

export function Search({ label, value, onInput }: { label: string; value: string; onInput: (text: string) => void }) {
  return (
    <label class="search">
      <Icon name="search" />
      <input
        type="search"
        aria-label={label}
        placeholder={label}
        value={value}
        maxLength={100}
        spellcheck={false}
        onInput={(event) => onInput(event.currentTarget.value)}
      />
    </label>
  );
}
