"""What result records say: runs grouped into arms, statistics over seeds, tables and verdicts. Never imports torch."""

from layerroute.errors import require

require("scipy", "pandas", "matplotlib", "jinja2", "markupsafe", extra="report")
