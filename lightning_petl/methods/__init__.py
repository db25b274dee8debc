"""The built-in methods, one file each. They import only the contract, as a third party's do."""
