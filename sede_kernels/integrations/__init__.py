"""Drop-ins for code bases people already have, one small module for each host.

Nothing is imported here: ``from sede_kernels.integrations.open_clip import ClipLoss`` loads that
one module, and a module imports its host only if it must build on the host's classes.
See docs/integrations.md for the three lines each host needs.

| host | module |
|---|---|
| SCAN | ``scan`` |
| BFAN | ``bfan`` |
| SGRAF, and others whose criterion takes the score matrix | ``sgraf`` |
| IMRAM | ``imram`` |
| VSE++, VSRN | ``vsepp`` |
| VSE-infinity | ``vse_infinity`` |
| open_clip | ``open_clip`` |
| sentence-transformers | ``sentence_transformers``, ``sentence_transformers_cached`` |
| pytorch-metric-learning | ``metric_learning`` |
| lightly | ``lightly`` |
| MoCo loops | ``moco`` |
| ALBEF, BLIP | ``albef`` |
| checkpoints of the Trainer of transformers | ``transformers`` |
| checkpoints of Lightning and of accelerate | ``lightning``, ``accelerate`` |
"""
