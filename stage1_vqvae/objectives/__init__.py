"""Terms of a decoder's objective. Each option is one file, named as in params.yaml; base.py has the class of all."""
