"""The README.md of a model on the Hugging Face Hub: front matter for machines, text for people."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ddpm_jax.models import count_parameters
from ddpm_jax.runs import Run

METRICS = {"fid": "FID", "kid": "KID", "is": "Inception score"}  # names that the Hub knows


def write(run: Run, pipeline: str, *, licence: str, evaluation: Mapping[str, Any]) -> str:
    """Return the text of the card.

    Args:
      run: the run.
      pipeline: the class of the pipeline, such as "DDPMPipeline".
      licence: the Hub's name of the licence; "" is none.
      evaluation: the content of evaluate.json; {} is none.
    """
    rows = [row for row in evaluation.get("rows", []) if row.get("value") is not None]
    front = _front_matter(run, licence, rows)
    return "\n".join(["---", *front, "---", "", *_text(run, pipeline, evaluation, rows)]) + "\n"


def _front_matter(run: Run, licence: str, rows: list[Mapping[str, Any]]) -> list[str]:
    """Return the lines of YAML. JSON's strings and lists are YAML too."""
    data = run.config.data.name
    named = [] if data in ("folder", "array") else [data]
    known = [row for row in rows if _kind(row) in METRICS]
    lines = [
        *([f"license: {json.dumps(licence)}"] if licence else []),
        "library_name: diffusers",
        "pipeline_tag: unconditional-image-generation",
        'tags: ["diffusers", "ddpm", "unconditional-image-generation", "jax", "ddpm_jax"]',
        *([f"datasets: {json.dumps(named)}"] if named else []),
    ]
    if known:
        lines.append(f"metrics: {json.dumps(sorted({_kind(row) for row in known}))}")
        lines += [
            "model-index:",
            f"  - name: {json.dumps(f'ddpm_jax {data}')}",
            "    results:",
            "      - task: {type: unconditional-image-generation}",
            f"        dataset: {{name: {json.dumps(data)}, type: {json.dumps(data)}}}",
            "        metrics:",
            *(
                f"          - {{type: {_kind(row)}, name: {json.dumps(row['name'])}, "
                f"value: {row['value']:.6g}}}"
                for row in known
            ),
        ]
    return lines


def _text(
    run: Run, pipeline: str, evaluation: Mapping[str, Any], rows: list[Mapping[str, Any]]
) -> list[str]:
    """Return the lines of the text."""
    c, model = run.config, run.config.model
    height, width, channels = run.facts.image_shape
    steps = c.sample.num_steps or c.process.num_timesteps
    lines = [
        f"# Images of {height}x{width}, by a diffusion model",
        "",
        f"A denoising diffusion model (Ho et al. 2020) with {count_parameters(run.params):,} "
        f"parameters for images of {height}x{width}x{channels}. The process has "
        f"{c.process.num_timesteps} timesteps, schedule {c.process.schedule}; the network predicts "
        f"{c.loss.kind}. {_history(run)}",
        "",
        "## Use",
        "",
        "In diffusers:",
        "",
        "```python",
        f"from diffusers import {pipeline}",
        "",
        f"pipeline = {pipeline}.from_pretrained(PATH)",
        *_their_call(run, pipeline, steps),
        "```",
        "",
        "In ddpm_jax:",
        "",
        "```python",
        "import jax",
        "from ddpm_jax.interop import from_diffusers",
        "",
        "run = from_diffusers(PATH)",
        *_our_call(run),
        "```",
    ]
    if model.class_conditional:
        names = [f"{label}: {name}" for label, name in enumerate(run.facts.class_names)]
        null = f"{run.facts.num_classes}: no class" if model.null_class else ""
        lines += ["", "The labels are: " + "; ".join(part for part in (*names, null) if part) + "."]
    if c.sample.sampler not in ("ancestral", "ddim"):
        lines += [
            "",
            f"The run was sampled by {c.sample.sampler}, which this pipeline's scheduler is not.",
        ]
    if rows:
        lines += ["", "## Evaluation", "", "| metric | value | error | n |", "|---|---|---|---|"]
        for row in rows:
            error = "" if row.get("error") is None else f"{row['error']:.2g}"
            lines.append(f"| {row['name']} | {row['value']:.4g} | {error} | {row['n']:,} |")
        about = ("checkpoint", "samples", "features", "reference")
        lines += ["", *(f"{name}: {evaluation[name]}  " for name in about if name in evaluation)]
    return lines


def _history(run: Run) -> str:
    """Return how the weights were made, in words."""
    if not run.facts.known:
        return "The weights were converted by ddpm_jax."
    how = f"Trained by ddpm_jax on {run.config.data.name}, to step {run.step:,}"
    return f"{how}; the weights are their moving average."


def _their_call(run: Run, pipeline: str, steps: int) -> list[str]:
    """Return the lines that sample with diffusers; its pipelines pass no labels."""
    if not run.config.model.class_conditional:
        clip = pipeline == "DDIMPipeline" and run.config.sample.clip_x_0
        more = ", use_clipped_model_output=True" if clip else ""
        return [f"images = pipeline(batch_size=4, num_inference_steps={steps}{more}).images"]
    height, width, channels = run.facts.image_shape
    return [
        "import torch",
        "",
        "labels = torch.tensor([0, 1])",
        f"x = torch.randn(2, {channels}, {height}, {width})",
        f"pipeline.scheduler.set_timesteps({steps})",
        "with torch.no_grad():",
        "    for t in pipeline.scheduler.timesteps:",
        "        output = pipeline.unet(x, t, class_labels=labels).sample",
        "        x = pipeline.scheduler.step(output, t, x).prev_sample  # in [-1, 1]",
    ]


def _our_call(run: Run) -> list[str]:
    """Return the lines that sample with this library."""
    if not run.config.model.class_conditional:
        return ["images = run.sample_fn()(run.params, jax.random.key(0), 4)  # in [-1, 1]"]
    return [
        'cond = {"label": jax.numpy.array([0, 1])}',
        "images = run.sample_fn()(run.params, jax.random.key(0), 2, cond)  # in [-1, 1]",
    ]


def _kind(row: Mapping[str, Any]) -> str:
    """Return the kind of a metric: "fid" for "fid50k_train"."""
    found = re.match(r"[a-z]+", row["name"])
    return found[0] if found else ""
