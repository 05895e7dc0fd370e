DROP TABLE posduif.routing;
