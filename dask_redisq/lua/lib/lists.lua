-- Lists as sets.
-- keys:
local function contains(list, thing)
  for _, one in ipairs(list) do if one == thing then return true end end
  return false
end

-- Return `list` without `thing`; and whether it was there, or `found`.
local function without(list, thing, found)
  local left = {}
  for _, one in ipairs(list) do if one ~= thing then left[#left + 1] = one end end
  return left, found or #left < #list
end
