"""Configuration: frozen models of manifests, recipes and studies, how they are loaded, and user errors."""
