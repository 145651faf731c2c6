"""Figures, HTML page and Markdown paper, from result records alone. Never imports torch."""
