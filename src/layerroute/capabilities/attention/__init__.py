"""Attention routing: linear attention or softmax attention, token by token."""
