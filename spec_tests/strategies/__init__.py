"""Hypothesis strategies: they draw descriptions; a description builds its model and knows what to expect."""
