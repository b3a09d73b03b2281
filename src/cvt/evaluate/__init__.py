"""How good a model is: figures on labelled images, and the page that shows them."""
