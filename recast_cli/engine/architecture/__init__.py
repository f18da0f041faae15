"""timm networks: describe, build, find modules, take features."""
