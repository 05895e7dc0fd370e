-- Creates the mobile user of an enrollment. $1 text: username.
INSERT INTO {schema}.users (username, user_type) VALUES ($1, 'mobile') RETURNING id
