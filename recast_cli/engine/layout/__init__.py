"""Which modules share which templates, with n and K; pure Python, without torch and timm."""
