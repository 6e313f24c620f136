"""Measuring: scores of many queries and seeds, and what may be said of their differences."""
