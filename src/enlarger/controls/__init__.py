"""Control pictures for ControlNets: edges and poses drawn here, depth and other maps by a model of the user's."""
