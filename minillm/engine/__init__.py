"""The one place that knows all five stages."""
