"""Find the templates and coefficients that make a source's weights, exactly or by gradient descent."""
