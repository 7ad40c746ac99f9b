// Tags of one device; who may changes them.
import { useState } from "preact/hooks";
import { Icon } from "./icon";

interface TagEditorProps {
  tags: string[];
  editable: boolean;
  busy: boolean;
  onChange: (tags: string[]) => void;
}

export function TagEditor({ tags, editable, busy, onChange }: TagEditorProps) {
  const [added, setAdded] = useState("");
  if (!editable && tags.length === 0) return <p class="quiet">None.</p>;
  return (
    <div class="tag-editor">
      {tags.length > 0 && (
        <ul>
          {tags.map((tag) => (
            <li key={tag} class="tag">
              {tag}
              {editable && (
                <button
                  type="button"
                  class="icon-button"
                  disabled={busy}
                  aria-label={`Remove the tag ${tag}`}
                  onClick={() => onChange(tags.filter((other) => other !== tag))}
                >
                  <Icon name="close" />
                </button>
              )}
            </li>
          ))}
        </ul>
      )}
      {editable && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (!added.trim()) return;
            onChange([...tags, added.trim()]);
            setAdded("");
          }}
        >
          <input
            class="input"
            aria-label="New tag"
            placeholder="New tag"
            maxLength={64}
            value={added}
            onInput={(event) => setAdded(event.currentTarget.value)}
          />
          <button type="submit" class="button" disabled={busy || !added.trim()}>
            Add
          </button>
        </form>
      )}
    </div>
  );
}
