"""Bench: ratios measured side by side in one run, and the bars of the product at full size."""
