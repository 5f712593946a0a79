"""DreamFusion for two CPU cores: solids, grown from a model of their pictures at 32x32.

Command:  python -m experiments.dreamfusion --config=experiments/dreamfusion_solids.py
          ... --classes=chair,mug --config.field.num_seeds=3
          ... --config=experiments/dreamfusion_solids.py:text --text="a red and blue striped chair"
          --workdir=runs/dreamfusion_text
          ... --config=experiments/dreamfusion_solids.py:smoke --workdir=runs/dreamfusion_smoke
Data:     `solids`: rendered by the library itself. The prior of `:text` receives their names in
          place of labels; docs/text.md says what to install. `:smoke` has tiny networks and 8x8
          pictures: it only checks that the experiment runs.
Paper:    Poole et al. 2022. docs/dreamfusion.md says what is smaller here.
Measured: a judge names the right class in 89.4 ± 3.9 % of the views of fields (chance: 12.5 %),
          without labels of views in 74.1 ± 7.9 %; 51 minutes for three fields of each class and arm
          on two cores, beside other work. `:text`, one field of each: 91.7 ± 4.6 %. (2026-11-27,
          jax 0.10.2, docs/dreamfusion.md)
"""

import dataclasses

import ml_collections

from ddpm_jax.training.scene import JudgeSettings, Settings
from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "", "text" or "smoke".

    Its sections are `data`, `prior` (the config of a run without its data), `field`
    (`ddpm_jax.training.scene.Settings`) and `judge` (`JudgeSettings`).
    """
    base.check_variant(__file__, variant, ("", "text", "smoke"))
    prior = base.get_config()
    data, field, judge = prior.data.copy_and_resolve_references(), Settings(), JudgeSettings()
    data.name = "solids"
    data.flip = False
    data.view_labels = True
    data.objects_per_class, data.views_per_object = 800, 2
    prior.process.schedule = "cosine"
    prior.loss.kind = "v"
    prior.model.class_conditional = True
    prior.model.patch_size = 2
    prior.model.channels = 32
    prior.model.channel_multipliers = (1, 2)
    prior.model.num_res_blocks = 1
    prior.model.attention_resolutions = (8,)
    prior.model.num_groups = 8
    prior.model.dropout = 0.0
    prior.optim.learning_rate = 2e-3
    prior.optim.warmup_steps = 100
    prior.optim.decay = "cosine"
    prior.optim.ema_decay = 0.995
    prior.train.num_steps = 10_000
    prior.train.batch_size = 16
    prior.train.num_samples = 200  # one of each label
    prior.train.sample_every = 0
    prior.train.checkpoint_every = 1000
    prior.train.keep_every = 0
    prior.eval.every = 0
    prior.sample.sampler = "dpm_solver_pp_2m"
    prior.sample.timesteps = "trailing"
    prior.sample.num_steps = 25
    if variant == "text":
        data.text = True
        prior.model.class_conditional = False
        prior.model.embedding_dim = 384
        prior.model.context_dim = 384
        prior.train.num_samples = 64
    if variant == "smoke":
        data.image_size, data.objects_per_class, data.views_per_object = 8, 4, 4
        prior.process.num_timesteps = 8
        prior.model.patch_size = 1
        prior.model.channels = 8
        prior.model.channel_multipliers = (1,)
        prior.model.num_groups = 4
        prior.model.attention_resolutions = ()
        prior.optim.warmup_steps = 1
        prior.train.num_steps = 4
        prior.train.batch_size = 8
        prior.train.num_samples = 4
        prior.sample.num_steps = 2
        field = Settings(
            resolutions=(3, 6), num_samples=6, num_steps=5, batch_size=2, checkpoint_every=2
        )
        judge = JudgeSettings(channels=4, num_steps=3, batch_size=8)
    sections = prior.to_dict()
    del sections["data"]
    content = {
        "data": data.to_dict(),
        "prior": sections,
        "field": dataclasses.asdict(field),
        "judge": dataclasses.asdict(judge),
    }
    return ml_collections.ConfigDict(content).lock()
