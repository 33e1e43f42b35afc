"""SFT and MGPO as recipes of NVIDIA NeMo 2 (`nemo_run`, `nemo.lightning`), for clusters that launch by its conventions.

Needs an environment of its own (docker/requirements-nemo.txt); nothing else in the project imports this package. Model,
micro-batches, losses, rollouts and step sizes are the project's own, and every setting comes from the run's
configuration: NeMo's `MegatronStrategy` only drives them. NeMo 2.7.3 is the last release with its language-model layer.
"""

from nemo_vibethinker.nemo_recipes.cpu import install_nemo_cpu_platform

install_nemo_cpu_platform()  # before NeMo binds torch's names
