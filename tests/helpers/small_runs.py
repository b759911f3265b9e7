"""Overrides that make a run of the command line as small as it can be; a test puts its own after them, which win."""

SMALL = ("+data.build.settings.scale=0.02", "evaluation.num_resamples=50", "trainer.num_threads=1")

SMALL_RL = (
    *SMALL,
    "curriculum=rl_only",
    "data.validation=null",
    "evaluation.limit=8",
    "evaluation.max_new_tokens=4",
    "trainer=cpu",
    "stages.reason.validate_every=null",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
)
