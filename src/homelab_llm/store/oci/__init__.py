"""Registries: who they are, what they ask for, and how blobs and manifests get there and back."""
