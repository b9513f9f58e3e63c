"""The tiny-mix report: transcoders beside autoencoders, trained and measured on the model that ships."""
