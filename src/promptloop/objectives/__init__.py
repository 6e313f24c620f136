"""Objectives: from rollouts to a loss. One file a family."""
