"""How good pictures are: samples against data, as numbers with the choices behind them."""
