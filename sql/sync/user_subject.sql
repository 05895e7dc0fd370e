-- The subject of a user whom a provider identifies, with the prefix of the provider. $1 text: tenant; $2 uuid: user.
SELECT subject FROM posduif.identities WHERE tenant = $1 AND user_id = $2
