"""The live page: a server that reads run directories, and one page that shows them."""
