// A labelled field with its hint, and with what the server finds wrong in it.
import { useId } from "preact/hooks";

interface FieldProps {
  label: string;
  hint: string;
  problem: string;
  value: string;
  numeric?: boolean;
  options?: string[]; // to choose from; others may be typed
  onInput: (value: string) => void;
}

export function Field({ label, hint, problem, value, numeric = false, options, onInput }: FieldProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        class="input"
        value={value}
        spellcheck={false}
        autocomplete="off"
        inputMode={numeric ? "decimal" : "text"}
        aria-invalid={problem !== ""}
        aria-describedby={`${id}-hint`}
        list={options ? `${id}-options` : undefined}
        onInput={(event) => onInput(event.currentTarget.value)}
      />
      {options && (
        <datalist id={`${id}-options`}>
          {options.map((option) => (
            <option key={option} value={option} />
          ))}
        </datalist>
      )}
      <small id={`${id}-hint`} class={problem ? "field-problem" : "quiet"}>
        {problem || hint}
      </small>
    </div>
  );
}
