DROP TABLE posduif.second_factors;
