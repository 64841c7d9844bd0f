"""The mathematics of diffusion: schedules, guidance, solvers."""
