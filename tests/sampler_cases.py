"""Every sampler, with every option that changes its steps. A new sampler needs one line here."""

from ddpm_jax import samplers

DETERMINISTIC = {
    "ddim": samplers.ddim,
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "dpm_solver_pp_3m": samplers.dpm_solver_pp_3m,
    "dpm_solver_pp_2s": samplers.dpm_solver_pp_2s,
    "unipc 2": lambda process: samplers.unipc(process, 2),
    "unipc 3": lambda process: samplers.unipc(process, 3),
}
STOCHASTIC = {
    "ancestral fixed_small": lambda process: samplers.ancestral(process, "fixed_small"),
    "ancestral fixed_large": lambda process: samplers.ancestral(process, "fixed_large"),
    "ddim eta 0.5": lambda process: samplers.ddim(process, 0.5),
    "ddim eta 1": lambda process: samplers.ddim(process, 1.0),
    "euler churn": lambda process: samplers.euler(process, 0.4),
    "heun churn": lambda process: samplers.heun(process, 0.4),
    "dpm_solver_pp_2m sde": lambda process: samplers.dpm_solver_pp_2m(process, stochastic=True),
    "predictor_corrector": samplers.predictor_corrector,
}
SAMPLERS = DETERMINISTIC | STOCHASTIC
