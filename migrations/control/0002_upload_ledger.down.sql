DROP TABLE posduif.upload_results;
DROP TABLE posduif.upload_devices;
