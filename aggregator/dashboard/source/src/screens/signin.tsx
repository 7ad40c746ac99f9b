// A token is asked for when the server wants one.
import { useState } from "preact/hooks";
import { Mark } from "../parts/shell";
import { signIn } from "../session";

export function SignIn({ why }: { why: string }) {
  const [value, setValue] = useState("");
  return (
    <main class="alone">
      <form
        class="signin"
        onSubmit={(event) => {
          event.preventDefault();
          if (value.trim()) signIn(value.trim());
        }}
      >
        <Mark />
        <h1>Sign in to your fleet</h1>
        <p class="quiet">This server wants a token. It is kept in this tab alone, until you close it.</p>
        {why && (
          <p class="field-problem" role="alert">
            {why}
          </p>
        )}
        <label class="field">
          <span>Token</span>
          <input
            class="input"
            type="password"
            name="token"
            autocomplete="current-password"
            spellcheck={false}
            placeholder="ff_…"
            value={value}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        <button type="submit" class="button primary" disabled={!value.trim()}>
          Sign in
        </button>
        <details>
          <summary>Where do I get one?</summary>
          <p>On the server's machine:</p>
          <pre>fedfleet token create --name me --role viewer</pre>
        </details>
      </form>
    </main>
  );
}
