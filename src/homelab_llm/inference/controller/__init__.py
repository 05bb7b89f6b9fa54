"""The controller: which model each slot serves, and how that changes without a failed request."""
