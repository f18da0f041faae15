"""A base inside a living network: attach, merge, switch, cheap gradients."""
