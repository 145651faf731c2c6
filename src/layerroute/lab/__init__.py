"""What result records say: runs grouped into arms, statistics over seeds, tables and verdicts. Never imports torch."""
