"""What a simulation is refused for."""


class SimulationError(Exception):
    """The simulation cannot run; the message names what is wrong, where, and what to do."""
