// Shows the last notice; screen readers hear it.
import { notice } from "../notice";
import { useStore } from "../store";
import { Icon } from "./icon";

export function NoticeLine() {
  const current = useStore(notice);
  return (
    <div class="notices" aria-live="polite">
      {current && (
        <p class={current.bad ? "notice bad" : "notice"} role={current.bad ? "alert" : "status"}>
          <Icon name={current.bad ? "bad" : "check"} />
          <span>{current.text}</span>
          <button type="button" class="icon-button" aria-label="Close this notice" onClick={() => notice.set(null)}>
            <Icon name="close" />
          </button>
        </p>
      )}
    </div>
  );
}
