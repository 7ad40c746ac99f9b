// Buttons for what can be done with one thing, each of which asks first.
import { useState } from "preact/hooks";
import { Confirm } from "./dialog";

export interface ActionText {
  word: string;
  title: string;
  text: string;
  done: string;
  danger: boolean;
}

export function Actions<A extends string>({
  actions,
  texts,
  name,
  act,
}: {
  actions: A[];
  texts: Record<A, ActionText>;
  name: string;
  act: (action: A) => Promise<void>;
}) {
  const [asked, setAsked] = useState<A | null>(null);
  return (
    <>
      {actions.map((action) => (
        <button
          key={action}
          type="button"
          class={texts[action].danger ? "button danger-quiet" : "button"}
          onClick={() => setAsked(action)}
        >
          {texts[action].word}
        </button>
      ))}
      {asked && (
        <Confirm
          title={texts[asked].title}
          action={`${texts[asked].word} ${name}`}
          danger={texts[asked].danger}
          onConfirm={() => void act(asked)}
          onClose={() => setAsked(null)}
        >
          <p>{texts[asked].text}</p>
        </Confirm>
      )}
    </>
  );
}
