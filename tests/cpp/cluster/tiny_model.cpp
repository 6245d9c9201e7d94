// The model tests' tiny models, in this program too.
#include "model/tiny_model.cpp"
