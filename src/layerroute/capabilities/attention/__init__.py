"""Attention routing: what only its question has."""
