"""The stages of the pipeline, one runnable module each: `python -m nemo_vibethinker.stages.sft --run-dir runs/NAME`."""
