"""The commands `fedfleet up`, `job` and `model`."""
