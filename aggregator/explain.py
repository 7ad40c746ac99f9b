"""What msgspec says of a value that does not fit, with the field first and the values there are. Pure."""

from typing import Literal, get_args, get_origin, get_type_hints

import msgspec


def explain(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> str:
    """The error of a conversion to `kind`: `selection.policy: Invalid enum value 'x'; known: …`."""
    what, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    known = ", ".join(map(str, _choices(kind, path)))
    return (f"{path}: " if path else "") + what + (f"; known: {known}" if known else "")


def _choices(kind: type[msgspec.Struct], path: str) -> tuple[object, ...]:
    """The values of the field at `path`, or the tags of the structs it chooses among; () where it is neither."""
    found: object = kind
    for name in path.split("."):
        structs = [part for part in (found, *get_args(found)) if isinstance(part, msgspec.StructMeta)]
        if structs and structs[0].__struct_config__.tag_field == name:
            return tuple(struct.__struct_config__.tag for struct in structs)
        if len(structs) != 1:
            return ()
        found = get_type_hints(structs[0]).get(name)
    return get_args(found) if get_origin(found) is Literal else ()
