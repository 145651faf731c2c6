"""``python -m layerroute.evaluation``: lm-evaluation-harness's own command line, which knows ``--model layerroute``."""

from lm_eval.__main__ import cli_evaluate

import layerroute.evaluation.harness  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
