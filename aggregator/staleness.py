"""How much an update counts that was trained τ versions ago, s(τ) (FedBuff: Nguyen et al. 2022, §5)."""


def polynomial(tau: int, exponent: float, tau_max: int) -> float:
    """(1 + τ)^(-exponent); beyond `tau_max` it stays at s(tau_max), because what is in the log is folded (I1)."""
    return float((1.0 + min(tau, tau_max)) ** -exponent)
