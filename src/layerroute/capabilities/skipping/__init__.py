"""Layer skipping: what only its question has."""
