"""The contract between device, bridge and aggregator: topics, messages, frames and parameter codecs.

`docs/wire.md` is the specification. Topics, messages, frames and chunks need the standard library and
msgspec only; `bits`, `places`, `sparse`, `weights` and `grid` also need numpy, so a daemon never imports those.
"""
