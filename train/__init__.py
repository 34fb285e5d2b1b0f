"""Training, evaluation and demonstration scripts, run from a checkout as ``python -m train.<script>``."""
