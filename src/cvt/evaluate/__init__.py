"""How good a model is: figures on labelled pictures, and the page that shows them."""
